#!/usr/bin/env bash
# A private SLURM of one node, for tests: everything lies in one new folder, nothing of the machine is configured.
# Usage, as root, with Debian's slurmctld slurmd slurm-client munge: tests/cluster/node.sh up|down FOLDER
set -euo pipefail
folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf

up() {
  local host memory
  host=$(hostname -s)
  memory=$(slurmd -C | grep -o 'RealMemory=[0-9]*')
  mkdir "$folder" && mkdir "$folder"/{state,spool,log,munge}
  chmod 755 "$folder" "$folder/munge"
  (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
  # cred_expire: a requeued job waits for as long. preempt_send_user_signal: without it, preemption sends no USR2.
  # Two CPUs, whatever the machine has: two runs at a time. Jobs of "high" preempt those of "low".
  cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$folder/munge/socket,cred_expire=5
SlurmctldPort=${SLURM_TEST_PORT:-16917}
SlurmdPort=$((${SLURM_TEST_PORT:-16917} + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 $memory
PartitionName=low Nodes=$host Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF
CONF
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
  slurmctld -c
  slurmd
  for _ in $(seq 300); do
    [ "$(sinfo --noheader --partition=low --format=%T 2> /dev/null)" = idle ] && return
    sleep 0.1
  done
  echo "node.sh: SLURM did not start; see $folder/log" >&2
  return 1
}

down() {
  scancel --user=root || true
  sleep 1
  local daemon number
  for daemon in slurmd slurmctld munged; do
    number=$(cat "$folder/$daemon.pid" 2> /dev/null) || continue
    kill "$number" || continue
    for _ in $(seq 50); do
      kill -0 "$number" 2> /dev/null || break
      sleep 0.1
    done
  done
}

"$1"
