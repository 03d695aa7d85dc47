"""Network identity over the lifespan of a LangGraph StateGraph."""
