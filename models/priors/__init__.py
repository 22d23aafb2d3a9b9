"""What models codes and latents: each prior a module whose forward pass is its training loss; sampling apart."""
