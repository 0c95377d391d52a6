"""The page of `noesis serve --ui`, put together from its parts without a build step."""
