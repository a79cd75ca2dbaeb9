"""What an answer is, read from its LaTeX: pure string work before any computer algebra."""
