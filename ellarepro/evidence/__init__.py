"""The prior, the marginal likelihood, predictions, and the library's face."""
