"""The model's forward pass: packing, log-probs, the reference policy."""
