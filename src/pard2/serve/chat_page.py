"""The chat page at `/`: a few static files, which load nothing from elsewhere."""

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
# What a model says is shown as text; were it ever taken for more, nothing of it would run or be fetched.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILES = ("index.html", "style.css", "chat.js", "markdown.js", "stream.js")
PATHS = ("/", *(f"/page/{name}" for name in FILES[1:]))


def add_page(app: FastAPI) -> None:
    """Serve it at `PATHS`."""
    for path, name in zip(PATHS, FILES, strict=True):
        _add(app, path, name)


def _add(app: FastAPI, path: str, name: str) -> None:
    content = files("pard2.serve").joinpath("page", name).read_bytes()

    @app.get(path)
    async def file() -> Response:
        return Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=_HEADERS)
