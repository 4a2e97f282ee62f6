"""Language models as judges of rationales."""
