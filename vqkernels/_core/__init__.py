"""What every op shares: backend selection, registration, argument checks, the compiled extension."""
