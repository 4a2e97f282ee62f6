"""The paper as pure code: the methods as data, schedules, losses, prompts."""
