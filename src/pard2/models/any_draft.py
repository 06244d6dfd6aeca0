"""Any draft that an engine can decode with."""

from pard2.models.draft import Draft
from pard2.models.eagle3 import Eagle3Draft

AnyDraft = Draft | Eagle3Draft
