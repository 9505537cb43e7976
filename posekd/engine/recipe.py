"""The old import path of `posekd.engine.recipes.recipe`."""

from posekd.engine.recipes.recipe import ModelSettings, Recipe, read_recipe, recipe_from_dict, recipe_to_dict

__all__ = ["ModelSettings", "Recipe", "read_recipe", "recipe_from_dict", "recipe_to_dict"]
