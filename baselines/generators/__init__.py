"""Text-to-image generators that LacTok is compared with."""
