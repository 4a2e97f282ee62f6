"""Train, measure and use small models that decide and write the reason for the decision they made."""

__version__ = "0.1.0"
