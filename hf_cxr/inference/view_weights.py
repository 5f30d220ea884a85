SHAPES: list = []
WEIGHTS = ""
