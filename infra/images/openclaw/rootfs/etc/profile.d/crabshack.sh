# Login shells see what the gateway sees: same tenant, same secrets.
. /usr/local/lib/crabshack/environment.sh
