#!/bin/sh
# Starts `inferbase` in a container: each file of /run/secrets that is named like a setting becomes that variable, so that
# no secret stands in a compose file, an image or `docker inspect`.
set -eu
for file in /run/secrets/*; do
  name="${file##*/}"
  case "$name" in
    INFERBASE_* | DATABASE_URL | REDIS_URL) export "$name=$(cat "$file")" ;;
  esac
done
exec inferbase "$@"
