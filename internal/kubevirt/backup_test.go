package kubevirt

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// object reads fields of an object named b.
func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	require.NoError(t, yaml.Unmarshal([]byte(text), &u.Object))
	u.SetName("b")
	u.SetNamespace("vms")
	return u
}

const (
	volumes18 = `, includedVolumes: [{diskTarget: vda, volumeName: d-blk}, {diskTarget: vdb, volumeName: d-fs}]`
	own       = `checkpointName: b-2026-11-25_02-35-01, type: Full` + volumes18
)

// The statuses are those that KubeVirt 1.8.2 and 1.9.0 were seen to write.
func TestStateOf(t *testing.T) {
	const success = "Successfully completed VirtualMachineBackup"
	done := State{Stage: Succeeded, Checkpoint: "b-2026-11-25_02-35-01", Type: Full, Volumes: []string{"d-blk", "d-fs"}}
	failed := func(text string) State { return State{Stage: Failed, Detail: text} }
	for name, tc := range map[string]struct {
		status  string
		deleted bool
		want    State
		over    bool
	}{
		"no status":           {`null`, false, State{}, false},
		"1.9 attaching":       {`{}`, false, State{}, false},
		"1.9 only quiesced":   {`{conditions: [{type: Quiesced, status: "True", reason: QuiesceSucceeded, message: m}], ` + volumes18[2:] + `}`, false, State{}, false},
		"1.8 attaching":       {`{conditions: [{type: Initializing, status: "True", reason: PVC p is being attached}, {type: Progressing, status: "False", reason: PVC p is being attached}]}`, false, State{Detail: "PVC p is being attached"}, false},
		"1.9 not running":     {`{conditions: [{type: Progressing, status: "True", reason: Initializing, message: "vm vm1 is not running, cannot do backup"}]}`, false, State{Detail: "vm vm1 is not running, cannot do backup"}, false},
		"1.8 running":         {`{conditions: [{type: Progressing, status: "True", reason: Backup is in progress}, {type: Done, status: "False", reason: Backup is in progress}], ` + own + `}`, false, State{Stage: Running, Detail: "Backup is in progress"}, false},
		"1.9 running":         {`{conditions: [{type: Progressing, status: "True", reason: Initiated, message: Backup is in progress}], type: Full}`, false, State{Stage: Running, Detail: "Backup is in progress"}, false},
		"1.8 done":            {`{conditions: [{type: Progressing, status: "False", reason: ` + success + `}, {type: Done, status: "True", reason: ` + success + `}], ` + own + `}`, false, done, true},
		"1.9 done":            {`{conditions: [{type: Progressing, status: "False", reason: Completed, message: ` + success + `}, {type: Complete, status: "True", reason: Completed, message: ` + success + `}], ` + own + `}`, false, done, true},
		"1.8 no space":        {`{conditions: [{type: Done, status: "True", reason: "Backup has failed: No space left on device"}], ` + own + `}`, false, State{Stage: Failed, Detail: "Backup has failed: No space left on device", NoSpace: true}, true},
		"1.9 no space":        {`{conditions: [{type: Failed, status: "True", reason: Failed, message: "Backup has failed: No space left on device"}], type: Full}`, false, State{Stage: Failed, Detail: "Backup has failed: No space left on device", NoSpace: true}, true},
		"Go's spelling":       {`{conditions: [{type: Failed, status: "True", reason: Failed, message: "mkdir /x: no space left on device"}]}`, false, State{Stage: Failed, Detail: "mkdir /x: no space left on device", NoSpace: true}, true},
		"1.8 QEMU was killed": {`{conditions: [{type: Done, status: "True", reason: "Backup has failed: VMI backup status was lost"}], ` + own + `}`, false, failed("Backup has failed: VMI backup status was lost"), true},
		"1.9 QEMU was killed": {`{conditions: [{type: Failed, status: "True", reason: SourceLost, message: "Backup has failed: VMI backup status was lost"}], type: Full}`, false, failed("Backup has failed: VMI backup status was lost"), true},
		"1.9 another's checkpoint": {
			`{conditions: [{type: Complete, status: "True", reason: Completed, message: ` + success + `}], checkpointName: two-a-2026-11-25_02-55-56` + volumes18 + `}`, false,
			failed(`KubeVirt calls it complete, and its checkpoint is "two-a-2026-11-25_02-55-56", which is not its own`), true,
		},
		"a longer name's checkpoint": {
			`{conditions: [{type: Complete, status: "True"}], checkpointName: bb-2026, type: Full` + volumes18 + `}`, false,
			failed(`KubeVirt calls it complete, and its checkpoint is "bb-2026", which is not its own`), true,
		},
		"no type":       {`{conditions: [{type: Complete, status: "True"}], checkpointName: b-2026` + volumes18 + `}`, false, failed(`KubeVirt calls it complete, and its type is "", want Full or Incremental`), true},
		"no volumes":    {`{conditions: [{type: Complete, status: "True"}], checkpointName: b-2026, type: Full}`, false, failed("KubeVirt calls it complete, and it has no volumes"), true},
		"being deleted": {`{conditions: [{type: Progressing, status: "True", reason: Initiated}], ` + own + `}`, true, failed("it is being deleted"), false},
		// 1.9 was seen to call a backup complete that was deleted while it ran.
		"1.9 deleted and done": {`{conditions: [{type: Complete, status: "True"}], ` + own + `}`, true, failed("it is being deleted"), true},
		"nonsense":             {`{conditions: [7, {type: 1}], type: [], checkpointName: {}}`, false, State{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			vmb := object(t, "status: "+tc.status)
			if tc.deleted {
				vmb.SetDeletionTimestamp(&metav1.Time{Time: time.Unix(1, 0)})
			}
			require.Equal(t, tc.want, StateOf(vmb))
			require.Equal(t, tc.over, IsOver(vmb))
		})
	}
}

func TestCheckpointOf(t *testing.T) {
	require.Equal(t, Checkpoint{}, CheckpointOf(object(t, `status: {}`)))
	require.Equal(t, Checkpoint{"c1", []string{"a", "b"}},
		CheckpointOf(object(t, `status: {latestCheckpoint: {name: c1, volumes: [{volumeName: b}, {volumeName: a}]}}`)))
	require.True(t, IsRedefining(object(t, `status: {checkpointRedefinitionRequired: true}`)))
	require.False(t, IsRedefining(object(t, `status: {}`)))
}

func TestObjects(t *testing.T) {
	kind, name := SourceOf(NewTracker("vm1"))
	require.Equal(t, "VirtualMachine vm1", kind+" "+name)
	b := NewBackup(BackupSpec{Tracker: "t", Claim: "scratch", ForceFull: true, SkipQuiesce: true})
	kind, name = SourceOf(b)
	require.Equal(t, "VirtualMachineBackupTracker t", kind+" "+name)
	text, err := yaml.Marshal(b.Object)
	require.NoError(t, err)
	require.YAMLEq(t, `
apiVersion: backup.kubevirt.io/v1alpha1
kind: VirtualMachineBackup
spec:
  source: {apiGroup: backup.kubevirt.io, kind: VirtualMachineBackupTracker, name: t}
  mode: Push
  pvcName: scratch
  forceFullBackup: true
  skipQuiesce: true
`, string(text))
	require.Equal(t, "VirtualMachineBackupList", NewList(Backup).GetKind())
}

func TestDisks(t *testing.T) {
	vm := object(t, `
spec:
  template:
    spec:
      volumes:
      - {name: root, dataVolume: {name: root-disk}}
      - {name: data-1, persistentVolumeClaim: {claimName: data}}
      - {name: seed, cloudInitNoCloud: {userData: ""}}
      - 7
`)
	require.Equal(t, []Disk{{"root", "root-disk"}, {"data-1", "data"}}, Disks(vm))
	disk, ok := DiskOf(vm, "data")
	require.True(t, ok)
	require.Equal(t, "data-1", disk.Volume)
	_, ok = DiskOf(vm, "seed")
	require.False(t, ok)
	require.Empty(t, Disks(object(t, `spec: {}`)))
}

func TestReady(t *testing.T) {
	for name, tc := range map[string]struct {
		status string
		want   Reason
		detail string
	}{
		"ready":          {`{created: true, printableStatus: Running, changedBlockTracking: {state: Enabled}}`, "", ""},
		"stopped":        {`{printableStatus: Stopped, changedBlockTracking: {state: Enabled}}`, NotRunning, "VM vms/b is Stopped, want Running"},
		"paused":         {`{created: true, printableStatus: Paused, changedBlockTracking: {state: Enabled}}`, NotRunning, "VM vms/b is Paused"},
		"no status":      {`{}`, NotRunning, "VM vms/b is of unknown state"},
		"not tracked":    {`{created: true, printableStatus: Running}`, NotTracked, "of unknown state, want Enabled: give the VM the label"},
		"wants a reboot": {`{created: true, printableStatus: Running, changedBlockTracking: {state: PendingRestart}}`, NotTracked, "is PendingRestart, want Enabled"},
	} {
		t.Run(name, func(t *testing.T) {
			ok, reason, detail := Ready(object(t, "status: "+tc.status))
			require.Equal(t, tc.want == "", ok)
			require.Equal(t, tc.want, reason)
			require.Contains(t, detail, tc.detail)
		})
	}
}
