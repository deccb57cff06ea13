#!/usr/bin/env bash
# Makes what compose.yaml mounts as secrets: passwords, keys, the stores' addresses for each process, and Redis' users.
# What is there is kept, so it may be run again; addresses and users are written anew. Kubernetes takes the same files:
#   kubectl create secret generic inferbase-api --from-file=… (infra/kubernetes/secrets.yaml says which)
# Usage: compose/make_secrets.sh [FOLDER] [REDIS_HOST:PORT] [POSTGRES_HOST:PORT]
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:-$root/compose/secrets}" redis="${2:-redis:6379}" postgres="${3:-postgres:5432}"

mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
write() { rm -f "$1.new" && cat > "$1.new" && chmod 444 "$1.new" && mv -f "$1.new" "$1"; }

for name in key_pepper wire_key jwt_key grafana_admin postgres_owner postgres_api postgres_settlement postgres_janitor \
  redis_api redis_worker redis_settlement redis_janitor redis_operator; do
  [[ -s $name ]] || random | write "$name"
done

for user in api worker settlement janitor operator; do
  printf 'redis://%s:%s@%s/0' "$user" "$(cat "redis_$user")" "$redis" | write "redis_url_$user"
done
for user in api settlement janitor; do
  printf 'postgresql://inferbase_%s:%s@%s/inferbase' "$user" "$(cat "postgres_$user")" "$postgres" | write "database_url_$user"
done
printf 'postgresql://inferbase:%s@%s/inferbase' "$(cat postgres_owner)" "$postgres" | write database_url_owner

# One line for each user, which is all that the server reads; passwords as SHA-256.
awk '/^ *(#|$)/ { next }
     /^ / { sub(/^ +/, " "); line = line $0; next }
     { if (line != "") print line; line = $0 }
     END { print line }' "$root/infra/redis/users.txt" > users.acl.lines
for user in api worker settlement janitor operator; do
  hash="$(tr -d '\n' < "redis_$user" | sha256sum | cut -d' ' -f1)"
  sed -i "s/\${REDIS_${user^^}_SHA256}/$hash/" users.acl.lines
done
write users.acl < users.acl.lines
rm users.acl.lines
