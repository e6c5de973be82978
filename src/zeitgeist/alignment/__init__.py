"""What a model should say, from demonstrations, rewards and preferences."""
