"""How well predictions agree with measured expression, beside what simple baselines and the noise allow."""
