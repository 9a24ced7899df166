"""What a trained model says of pictures: as JSON, drawn into each picture, and as a contact sheet."""
