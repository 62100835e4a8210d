"""The configuration server: enrolment, inventory, policies, protection state, jobs, health, and the authority of the site.

Read it top-down: ``__main__ → cli → config → daemon → core``. It coordinates and never carries replicated bytes.
"""
