"""The leader's loop: desired into requests to the writer, answers and recovery points into state, jobs along their steps."""
