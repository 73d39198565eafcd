"""The only training loop: recipe, optimisation, engine, validation, checkpoint."""
