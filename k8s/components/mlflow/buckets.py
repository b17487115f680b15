"""Make the buckets named in a JSON file and set their lifecycle; what is there already is left as it is.

The pipelines' bucket is their working set and expires; what is kept for good is in MLflow's bucket, which does not.
"""

import json
import sys
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def lifecycle(bucket, expire_days, abort_uploads_days):
    """The rules of a bucket, as S3 takes them."""
    rule = {"ID": bucket, "Status": "Enabled", "Filter": {"Prefix": ""}}
    rule["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": abort_uploads_days}
    if expire_days is not None:
        rule["Expiration"] = {"Days": expire_days}
    return {"Rules": [rule]}


def make(s3, bucket):
    """Create the bucket unless it is ours already."""
    try:
        s3.head_bucket(Bucket=bucket)
        print(f"{bucket}: is there")
        return
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
    region = s3.meta.region_name
    elsewhere = {} if region in (None, "us-east-1") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=bucket, **elsewhere)
    print(f"{bucket}: created")


def main(file):
    """Returns the exit status."""
    s3 = boto3.client("s3")
    for bucket, settings in json.loads(Path(file).read_text(encoding="utf-8")).items():
        try:
            make(s3, bucket)
        except (BotoCoreError, ClientError) as error:
            print(f"{bucket}: {error}; check AWS_ENDPOINT_URL and the keys in Secret whence-s3", file=sys.stderr)
            return 1
        try:
            s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=lifecycle(bucket, **settings))
            print(f"{bucket}: lifecycle set, {settings}")
        except ClientError as error:  # MinIO cleans up unfinished uploads by itself and refuses a rule about them alone
            print(f"{bucket}: the store takes no such lifecycle ({error}); clean it by other means if it grows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
