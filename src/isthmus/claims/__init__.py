"""The paper's figures and claims, each with seeds, intervals and certificates."""
