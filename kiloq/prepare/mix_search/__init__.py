"""Which shares of the sources make the best model: many tiny trainings on sampled mixtures, a law fitted to their losses."""
