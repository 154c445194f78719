"""Images from formulas with statistics of photographs, in shares that are fitted to a teacher."""
