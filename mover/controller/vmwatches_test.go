package controller

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/mover/vmbackup"
)

// What a disk of a VM waits for wakes it: a step of the disk that leads, and the end of Velero's turn.
func TestDisksAreWoken(t *testing.T) {
	h := vmWorld(t)
	var uploads velerov2alpha1.DataUploadList
	require.NoError(t, h.c.List(h.ctx, &uploads))
	require.Len(t, uploads.Items, 2)
	leader, other := &uploads.Items[0], &uploads.Items[1]
	require.Len(t, h.uploads.siblings(h.ctx, leader), 1)
	require.Equal(t, other.Name, h.uploads.siblings(h.ctx, leader)[0].Name)
	require.Empty(t, h.uploads.siblings(h.ctx, &velerov2alpha1.DataUpload{}), "no disk of a VM")

	moved := leader.DeepCopy()
	moved.Annotations = map[string]string{identity.AnnotationVMBackup: vmbackup.State{Begun: true}.String()}
	require.True(t, vmBackupMoved().Update(event.UpdateEvent{ObjectOld: leader, ObjectNew: moved}))
	require.False(t, vmBackupMoved().Update(event.UpdateEvent{ObjectOld: moved, ObjectNew: moved}))
	require.False(t, vmBackupMoved().Create(event.CreateEvent{Object: moved}))

	name, _ := backupOf(leader)
	backup := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: name}}
	require.Len(t, h.uploads.disksOf(h.ctx, backup), 2)
	written := backup.DeepCopy()
	written.Status.Phase = velerov1.BackupPhaseWaitingForPluginOperations
	require.True(t, backupWritten().Update(event.UpdateEvent{ObjectOld: backup, ObjectNew: written}))
	require.False(t, backupWritten().Update(event.UpdateEvent{ObjectOld: written, ObjectNew: written}))
	backup.Name = "another"
	require.Empty(t, h.uploads.disksOf(h.ctx, backup))
}

func TestLooksOften(t *testing.T) {
	noon := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	e := &engine{now: func() time.Time { return noon }}
	begun := vmbackup.State{Decided: true, Begun: true}
	ready := vmbackup.State{Begun: true, Ready: true, Files: &vmbackup.Files{}}
	for name, tc := range map[string]struct {
		state string
		phase phase.Phase
		age   time.Duration
		want  bool
	}{
		"QEMU writes":      {begun.String(), phase.New, time.Minute, true},
		"for a long time":  {begun.String(), phase.New, time.Hour, false},
		"not begun":        {vmbackup.State{}.String(), phase.New, time.Second, false},
		"ready":            {ready.String(), phase.New, time.Second, false},
		"the pod runs":     {begun.String(), phase.InProgress, time.Second, false},
		"no disk of a VM":  {"", phase.New, time.Second, false},
		"cannot be parsed": {"{", phase.New, time.Second, false},
	} {
		op := &operation.View{Created: noon.Add(-tc.age), Status: operation.Status{Phase: tc.phase, VMBackup: tc.state}}
		require.Equal(t, tc.want, e.looksOften(op), name)
	}
}
