"""Whether the mechanism shows in trained models: measured filters, predictors replaced by them, foretelling."""
