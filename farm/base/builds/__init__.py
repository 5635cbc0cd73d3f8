"""The parts and shapes of random-weight pipelines; ``farm.base.random_weights`` builds them."""
