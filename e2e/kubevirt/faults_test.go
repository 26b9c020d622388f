package kubevirt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kubevirt/standin"
)

// TestFaults has KubeVirt's backups fail as KubeVirt was seen to fail, in the style of either version.
// Each backup is complete, says what it is and why, and the last one is what the guest saw.
func TestFaults(t *testing.T) {
	w := theStandin(t)
	t.Cleanup(func() { w.SetStyle(standin.Style18) })
	s := newScenario(t)
	g := s.start()
	n := 0
	next := func(style standin.Style, kind, detail string, faults ...standin.Fault) string {
		t.Helper()
		n++
		w.SetStyle(style)
		w.Inject(faults...)
		s.fill(g, 64, 1, n)
		name := fmt.Sprintf("fault-%d-%s", n, s.suffix)
		for claim, result := range s.backUp(name, g.namespace, "--csi-snapshot-timeout", "20s") {
			require.Equal(t, kind, result["kind"]+" "+result["reason"], claim)
			require.Contains(t, result["detail"], detail, claim)
		}
		return name
	}
	next(standin.Style18, "Full NoParent", "the VM has no checkpoint")
	next(standin.Style19, "Incremental ", "", standin.Fault{BytesPerSecond: 32 << 10})
	next(standin.Style18, "Full IncrementalStuck", "has not begun within 20s: backup target PVC", standin.Fault{Hang: true})
	next(standin.Style19, "Full IncrementalStuck", "which is not its own", standin.Fault{FalseSuccess: true})
	require.NoError(t, g.forget(s.ctx))
	next(standin.Style19, "Full IncrementalStuck", "checkpoint inconsistent")
	// What changed is not lost with an attempt that failed.
	for _, style := range []standin.Style{standin.Style18, standin.Style19} {
		// QEMU takes its time, so that its volume is full before it has written all.
		s.testNoSpace(g, func() string { return next(style, "Incremental ", "", standin.Fault{BytesPerSecond: 1 << 20}) })
	}
}

// TestLostWhileItRuns kills QEMU, and another time deletes the VM, while QEMU writes the disks.
func TestLostWhileItRuns(t *testing.T) {
	w := theStandin(t)
	s := newScenario(t)
	g := s.start()
	slow := standin.Fault{BytesPerSecond: 1 << 20}
	s.backUp("lost-first-"+s.suffix, g.namespace)
	s.fill(g, 1024, 60, 0)

	w.Inject(slow)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		if s.waitForQEMU(g) {
			pid, err := g.process()
			assert.NoError(t, errors.Join(err, syscall.Kill(pid, syscall.SIGKILL)))
		}
	}()
	name := "lost-qemu-" + s.suffix
	for claim, result := range s.backUp(name, g.namespace) {
		require.Equal(t, "Full IncrementalStuck", result["kind"]+" "+result["reason"], "%s: %s", claim, result["detail"])
		require.Contains(t, result["detail"], "backup status was lost", claim)
	}
	<-killed
	s.requireEqual(s.restoreDisks(name, g.namespace, "lost"), g)

	// QEMU would be done before the VM is deleted if nothing had changed since.
	s.fill(g, 1024, 60, 0)
	w.Inject(slow)
	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		if s.waitForQEMU(g) {
			_, err := s.kit.Kubectl(s.ctx, "-n", g.namespace, "delete", "vm", "vm1", "--timeout=60s")
			assert.NoError(t, err)
		}
	}()
	gone := "was deleted since Velero backed it up"
	s.requireFailure("lost-vm-"+s.suffix, g.namespace, map[string]string{"blk": gone, "fs": gone, "disk-3-9": gone})
	<-deleted
}

// requireFailure makes a backup that fails for each disk with a message, by PVC, and leaves nothing.
func (s *scenario) requireFailure(name, namespace string, messages map[string]string) {
	s.Helper()
	s.deleteBackupInTheEnd(name)
	o, err := s.kit.Backup(s.ctx, name, "--include-namespaces", namespace, "--resource-policies-configmap", s.policy())
	require.NoError(s, err)
	require.Equal(s, "PartiallyFailed", o.Status.Phase)
	uploads, err := s.kit.DataUploads(s.ctx, name)
	require.NoError(s, err)
	require.Len(s, uploads, len(messages))
	for claim, u := range uploads {
		require.Equal(s, "Failed", u.Status.Phase, claim)
		require.Contains(s, u.Status.Message, messages[claim], claim)
	}
	require.NoError(s, s.kit.WaitNoLeftovers(s.ctx))
}

// TestDamagedFiles has KubeVirt call a backup complete whose files are not what they should be. No
// backup is made of them, and the next one does not build on them.
func TestDamagedFiles(t *testing.T) {
	w := theStandin(t)
	s := newScenario(t)
	g := s.start()
	s.fill(g, 1024, 4, 0)
	s.backUp("sound-"+s.suffix, g.namespace)
	// One disk each.
	damage := standin.Fault{Damage: func(directory string) error {
		file := func(volume string) string {
			found, err := filepath.Glob(filepath.Join(directory, "*-"+volume+".qcow2"))
			require.NoError(t, err)
			require.Len(t, found, 1)
			return found[0]
		}
		linked := file("d-3-9")
		return errors.Join(os.Truncate(file("d-blk"), 200<<10), os.Remove(file("d-fs")), os.Remove(linked), os.Symlink("/etc/passwd", linked))
	}}
	s.fill(g, 1024, 4, 8)
	w.Inject(damage)
	s.requireFailure("damaged-"+s.suffix, g.namespace, map[string]string{
		"blk": "qcow2", "fs": "KubeVirt has not written", "disk-3-9": "is not a regular file",
	})
	last := "sound-again-" + s.suffix
	for claim, result := range s.backUp(last, g.namespace) {
		require.Equal(t, "CheckpointUnknown", result["reason"], "%s: %s", claim, result["detail"])
	}
	s.requireEqual(s.restoreDisks(last, g.namespace, "sound"), g)
}
