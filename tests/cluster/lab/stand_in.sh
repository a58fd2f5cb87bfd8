#!/bin/bash
# In Python's place where only the batch script is looked at. Start n of the job does what the n-th word of PLAY says:
#   CODE[:STEP:SAVED]   end with an exit code, with the position that a run would have left
#   wait                end when a signal comes, as a run does: saved, 85
#   told                end with 2, all but rank 0 with a word about it
#   deaf                be killed by it, as a run is that has not come as far as listening
[ "$1" != -Ic ] || exit 1  # it runs no Python
if [ "${*: -1}" = run.dry=true ]; then  # seconds and exit code of each start's check: nothing is wrong with the job
  read -ra checks <<< "${CHECKS:-}"
  IFS=: read -r seconds code <<< "${checks[${SLURM_RESTART_COUNT:-0}]:-0:0}"
  echo "checking for $WORLD_SIZE" && sleep "$seconds" && exit "$code"
fi
echo "start ${SLURM_RESTART_COUNT:-0} of rank $SLURM_PROCID at $MASTER_ADDR:$MASTER_PORT:$(printf ' <%s>' "$@")"
read -ra play <<< "$PLAY"
IFS=: read -r what step saved <<< "${play[${SLURM_RESTART_COUNT:-0}]}"
[ -z "$step" ] || echo "$step $saved running" > "$LIMOE_POSITION"
case $what in
  wait) trap 'echo "7 7 85" > "$LIMOE_POSITION"; exit 85' USR1 TERM ;;&
  told) [ "$SLURM_PROCID" = 0 ] || echo "error: seen by rank $SLURM_PROCID" >&2; exit 2 ;;
  wait | deaf) echo ready; while :; do sleep 0.1; done ;;
esac
exit "$what"
