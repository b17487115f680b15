"""Folders to and from S3-compatible storage: whole or not there, checked by SHA-256, resumed after a crash."""

from whence.storage.download import download_folder
from whence.storage.transfer import Transferred
from whence.storage.upload import check_writable, upload_folder

__all__ = ["Transferred", "check_writable", "download_folder", "upload_folder"]
