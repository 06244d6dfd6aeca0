"""Ways to guess the target's next tokens. The engine sees only `base.Drafter`."""
