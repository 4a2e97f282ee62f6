"""Language models behind an address, as teachers, rivals and judges. Training and prediction import none of this."""
