"""The workplace's database: tables, assignments with exact quotas, labels, people."""
