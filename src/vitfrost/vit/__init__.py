"""How a Vision Transformer is seen: the only package that knows timm."""
