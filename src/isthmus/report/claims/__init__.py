"""The paper's figures and claims: a page, figures for print, a table for the terminal."""
