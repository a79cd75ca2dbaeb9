"""The formulas: tensors in, tensors out. No model, config, logging or distributed call."""
