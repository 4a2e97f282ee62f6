"""Tokens in, label and reason out: prompts as token ids, label scores, calibration, bundles, the predictor."""
