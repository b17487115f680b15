"""Store the dump of the database in MLflow's bucket and delete those that are too old; the newest always stays.

Restore: pg_restore --clean --if-exists --dbname=mlflow FILE, with MLflow scaled to 0.
"""

import os
import sys
from datetime import UTC, datetime, timedelta

import boto3

PREFIX = "postgres-backups/"


def main(file, bucket, keep_days):
    """Upload ``file`` under the time and delete what is older than ``keep_days``."""
    s3, now = boto3.client("s3"), datetime.now(UTC)
    if os.path.getsize(file) == 0:
        sys.exit(f"{file}: is empty; nothing stored, nothing deleted")
    s3.upload_file(file, bucket, f"{PREFIX}{now:%Y-%m-%dT%H%M%SZ}.dump")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=PREFIX)
    kept = [item for page in pages for item in page.get("Contents", [])]
    for item in sorted(kept, key=lambda item: item["LastModified"])[:-1]:
        if item["LastModified"] < now - timedelta(days=keep_days):
            s3.delete_object(Bucket=bucket, Key=item["Key"])
            print(f"{item['Key']}: deleted")


if __name__ == "__main__":
    main(
        sys.argv[1],
        os.environ["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://").partition("/")[0],
        int(sys.argv[2]),
    )
