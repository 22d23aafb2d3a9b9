"""Street scenes drawn from numbers: what stands where, how it is drawn, how it is lit."""
