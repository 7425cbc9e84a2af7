"""What is seen of the constraints of a model: reports, monitors, pictures."""
