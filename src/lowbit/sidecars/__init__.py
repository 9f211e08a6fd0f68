"""Side-cars: what is kept apart from the codes?"""
