"""Natural corruptions of images: noise, blur, weather, and what digital processing does."""
