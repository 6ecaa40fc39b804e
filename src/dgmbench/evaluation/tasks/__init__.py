"""What models do with single examples, measured: their own objectives, translations, enhancements, predictions."""
