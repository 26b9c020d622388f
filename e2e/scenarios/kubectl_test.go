package scenarios

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestKubectl looks at the cluster, backs up and cancels with the plugin of kubectl. Then the local
// commands read the repository in the object store, as if the cluster were lost.
func TestKubectl(t *testing.T) {
	s := newScenario(t)
	plugin := func(args ...string) string {
		t.Helper()
		out, err := s.kit.Kubectl(s.ctx, append([]string{"blockmover", "-n", s.kit.VeleroNamespace}, args...)...)
		require.NoError(t, err)
		return out
	}
	decode := func(into any, args ...string) {
		t.Helper()
		require.NoError(t, json.Unmarshal([]byte(plugin(append(args, "-o", "json")...)), into))
	}
	t.Log(plugin("doctor"))
	var findings []struct{ Check, Verdict, What string }
	decode(&findings, "doctor")
	require.GreaterOrEqual(t, len(findings), 10)
	for _, f := range findings {
		require.Equal(t, "ok", f.Verdict, "%s: %s", f.Check, f.What)
	}

	app := s.app("kubectl")
	volume := app.Namespace + "/" + kit.DiskPVC
	names := []string{s.name("kubectl-full"), s.name("kubectl-next")}
	var want []kit.Sums
	for n, flag := range []string{"--full", "--incremental"} {
		s.deleteBackupInTheEnd(names[n])
		want = append(want, s.sums(app))
		out := plugin(append([]string{"backup", "create", names[n], flag, "--wait", "--include-namespaces", app.Namespace},
			s.policy("version: v1\nvolumePolicies:\n- conditions: {csi: {}}\n  action: {type: custom, parameters: {mover: blockmover, retainSnapshot: always}}\n")...)...)
		require.Contains(t, out, "Backup "+names[n]+": Completed")
		require.Contains(t, out, "Upload of "+volume+" for "+names[n]+": Completed")
		require.NoError(t, app.Change(s.ctx))
	}

	t.Log(plugin("chain", volume))
	var images []struct {
		Backup, Kind, Parent, Base string
		Reasons                    []string
		ReadBytes, LogicalBytes    int64
	}
	decode(&images, "chain", volume)
	require.Len(t, images, 2)
	require.Equal(t, "Full", images[0].Kind)
	require.Contains(t, images[0].Reasons, "ForcedFull")
	require.Equal(t, "Incremental", images[1].Kind)
	require.Equal(t, names[0], images[1].Parent)
	require.Less(t, images[1].ReadBytes, images[1].LogicalBytes/10)

	t.Log(plugin("bases", "-o", "wide"))
	var bases []struct {
		Namespace, PVC, Backup string
		Newest                 bool
	}
	decode(&bases, "bases")
	held := map[string]string{}
	for _, b := range bases {
		if b.Newest {
			held[b.Namespace+"/"+b.PVC] = b.Backup
		}
	}
	require.NotEmpty(t, images[1].Base)
	require.Equal(t, names[1], held[volume])

	t.Log(plugin("status", volume))
	require.Equal(t, 2, strings.Count(plugin("status", volume), "Completed"))
	_, err := s.kit.Kubectl(s.ctx, "blockmover", "-n", s.kit.VeleroNamespace, "cancel", names[1])
	require.ErrorContains(t, err, "runs or waits")
	s.recoverWithoutCluster(app.Namespace, want)
	s.filesComeOut(app.Namespace, names, want)

	t.Log(plugin("verify", names[1]))
	t.Log(plugin("chain", volume))
	require.Contains(t, plugin("chain", volume), time.Now().UTC().Format(time.DateOnly))
	s.verifyEveryNight(volume)
	if os.Getenv("BLOCKMOVER_S3_DIR") != "" {
		s.verifyFindsDamage(app.Namespace, names, want[0])
	}
	s.dashboardHasData()
	s.checkNothingLeft()
}

// filesComeOut copies files out of both backups, in the cluster and without it. want are the contents, oldest first.
func (s *scenario) filesComeOut(namespace string, backups []string, want []kit.Sums) {
	s.Helper()
	volume := namespace + "/" + kit.FilesPVC
	files := func(args ...string) string {
		s.Helper()
		out, err := s.kit.Kubectl(s.ctx, append([]string{"blockmover", "-n", s.kit.VeleroNamespace, "files"}, args...)...)
		require.NoError(s, err)
		return out
	}
	s.Log(files("ls", "-l", backups[1], volume, "/"))
	var listed []struct {
		Path, Type string
		Size       int64
	}
	require.NoError(s, json.Unmarshal([]byte(files("ls", "-R", "-o", "json", backups[1], volume)), &listed))
	require.Greater(s, len(listed), 200)
	sums := map[string]string{}
	for line := range strings.Lines(want[1].Files) {
		if sum, path, ok := strings.Cut(strings.TrimSpace(line), "  ./"); ok {
			sums[path] = sum
		}
	}
	for _, path := range []string{"a/b/text-7", "a/random", "new"} {
		require.Equal(s, sums[path], fmt.Sprintf("%x", sha256.Sum256([]byte(files("cat", backups[1], volume, path)))), path)
	}
	for n, backup := range backups {
		dir := filepath.Join(s.TempDir(), "out")
		files("cp", backup, volume, "/", dir)
		got, err := s.kit.DirectorySums(s.ctx, dir)
		require.NoError(s, err)
		require.Equal(s, want[n].Files, got)
	}
	_, err := s.kit.Run(s.ctx, "", "sh", "-c", fmt.Sprintf("kubectl blockmover -n %s files tar %s %s a | tar -tf - | grep -qx a/random", s.kit.VeleroNamespace, backups[1], volume))
	require.NoError(s, err)
	require.Contains(s, files("ls", backups[0], namespace+"/"+kit.DiskPVC), "it has no file system")
	_, err = s.kit.Kubectl(s.ctx, "blockmover", "-n", s.kit.VeleroNamespace, "files", "cat", backups[0], volume, "missing")
	require.ErrorContains(s, err, "does not exist")
	_, err = s.kit.Kubectl(s.ctx, "blockmover", "-n", s.kit.VeleroNamespace, "files", "ls", backups[0], namespace+"/missing")
	require.ErrorContains(s, err, "has no complete image")

	// A client that is killed takes its pod with it.
	_, err = s.kit.Run(s.ctx, "", "sh", "-c", fmt.Sprintf(
		"kubectl blockmover -n %[1]s files tar %[2]s %[3]s / | { head -c 1000 > /dev/null; pkill -KILL -f '[k]ubectl-blockmover.*files tar %[2]s'; }", s.kit.VeleroNamespace, backups[1], volume))
	require.NoError(s, err)
	require.NoError(s, s.kit.Wait(s.ctx, "pod of a killed client to end", 2*time.Minute, func(ctx context.Context) (bool, string, error) {
		pods, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "get", "pods", "-l", "app.kubernetes.io/component=reader",
			"-o", "jsonpath={range .items[*]}{.metadata.name} {.status.phase}{end}")
		return !strings.Contains(pods, "Running"), pods, err
	}))
	_, err = s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "delete", "jobs", "-l", "app.kubernetes.io/component=reader")
	require.NoError(s, err)
	dir := s.TempDir()
	local, err := s.kit.Local(s.ctx, namespace, dir, "files", "cat", "--volume", volume, "a/b/text-3")
	require.NoError(s, err)
	require.Equal(s, "line 3 of a text file\n", local)
}

// verifyEveryNight runs the CronJob of deploy/verify now, with the rights that it has.
func (s *scenario) verifyEveryNight(volume string) {
	s.Helper()
	require.Regexp(s, volume+" +"+s.name("kubectl-next")+" +ok", s.runCronJob("blockmover-verify", "verify"))
}

// runCronJob runs a CronJob of some components of deploy now, and returns its log.
func (s *scenario) runCronJob(cronJob string, components ...string) string {
	s.Helper()
	s.kit.Components = components
	require.NoError(s, s.kit.InstallMover(s.ctx))
	name := s.name(cronJob)
	velero := []string{"-n", s.kit.VeleroNamespace}
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		// The Job goes with its CronJob.
		_, err := s.kit.Kubectl(ctx, append(velero, "delete", "cronjob", "-l", "app.kubernetes.io/component=verifier")...)
		require.NoError(s, err)
		_, err = s.kit.Kubectl(ctx, append(velero, "delete", "role/blockmover-verifier", "rolebinding/blockmover-verifier", "serviceaccount/blockmover-verifier")...)
		require.NoError(s, err)
		_, err = s.kit.Kubectl(ctx, "delete", "validatingadmissionpolicies,validatingadmissionpolicybindings", "-l", "app.kubernetes.io/component=verifier")
		require.NoError(s, err)
	})
	_, err := s.kit.Kubectl(s.ctx, append(velero, "create", "job", name, "--from=cronjob/"+cronJob)...)
	require.NoError(s, err)
	require.NoError(s, s.kit.Wait(s.ctx, "Job "+name, 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		status, err := s.kit.Kubectl(ctx, append(velero, "get", "job", name, "-o", "jsonpath={.status}")...)
		return strings.Contains(status, "succeeded") || strings.Contains(status, "failed"), status, err
	}))
	log, err := s.kit.Kubectl(s.ctx, append(velero, "logs", "job/"+name)...)
	require.NoError(s, err)
	return log
}

// verifyFindsDamage damages in several ways what only the second of two backups needs. The first one, which has the contents want,
// stays whole, and is restored when the damage is worst.
func (s *scenario) verifyFindsDamage(namespace string, backups []string, want kit.Sums) {
	s.Helper()
	for _, d := range []struct {
		name  string
		wreck func() (repair func())
		// says is what an image that is hit says.
		says string
	}{
		{"a pack with flipped bytes", func() func() {
			return s.rewriteNewest(namespace, "p", func(pack []byte) []byte {
				for i := 1000; i < len(pack); i += 64 << 10 {
					pack[i] ^= 1
				}
				return pack
			})
		}, "invalid checksum at p"},
		{"a pack cut to a third", func() func() {
			return s.rewriteNewest(namespace, "p", func(pack []byte) []byte { return pack[:len(pack)/3] })
		}, `\bp[0-9a-f]{32}-s`},
		// Each upload writes one.
		{"a lost part of the index", func() func() { return s.hideNewest(namespace, "xn", 1) }, "a part of the index is lost|an index blob is lost"},
	} {
		repair := d.wreck()
		_, damaged := s.verify(backups[0], "")
		require.Zero(s, damaged, d.name)
		_, damaged = s.verify(backups[1], d.says)
		require.Positive(s, damaged, d.name)
		if strings.Contains(d.name, "index") {
			s.restoreTo(backups[0], namespace, "kubectl-spared", want)
		}
		repair()
	}
	sound, damaged := s.verify(backups[1], "")
	require.Equal(s, []int{2, 0}, []int{sound, damaged}, "after the repair")
	events, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "get", "events", "--field-selector", "involvedObject.name="+backups[1], "-o", "jsonpath={.items[*].reason}")
	require.NoError(s, err)
	require.Contains(s, events, "ImageDamaged")
}

// verify verifies a backup, and counts its images. Those that are damaged say why.
func (s *scenario) verify(backup, why string) (sound, damaged int) {
	s.Helper()
	out, err := s.kit.Kubectl(s.ctx, "blockmover", "-n", s.kit.VeleroNamespace, "verify", backup, "-o", "json")
	var found []struct {
		Volume, Backup, Error string
		OK                    bool
		Damage                []struct{ Error string }
	}
	require.NoError(s, json.Unmarshal([]byte(out), &found), err)
	require.Len(s, found, 2)
	for _, v := range found {
		require.Equal(s, backup, v.Backup)
		require.Contains(s, v.Volume, "/")
		if v.OK {
			sound++
			continue
		}
		damaged++
		for _, d := range v.Damage {
			v.Error += d.Error
		}
		s.Logf("%s of %s: %s", v.Volume, v.Backup, v.Error)
		require.Regexp(s, why, v.Error)
	}
	require.Equal(s, damaged > 0, err != nil, "an image that is damaged is an error: %v", err)
	return sound, damaged
}

// newestBlobs returns the files of the blobs of a repository with a prefix, newest first.
func (s *scenario) newestBlobs(namespace, prefix string) []string {
	s.Helper()
	root := filepath.Join(os.Getenv("BLOCKMOVER_S3_DIR"), "velero", "kopia", namespace)
	var files []string
	at := map[string]time.Time{}
	require.NoError(s, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasPrefix(entry.Name(), prefix) {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			files, at[path] = append(files, path), info.ModTime()
		}
		return err
	}))
	slices.SortFunc(files, func(a, b string) int { return at[b].Compare(at[a]) })
	return files
}

// rewriteNewest changes the newest blob with a prefix. The file stays the same one, because the object store keeps attributes with it.
func (s *scenario) rewriteNewest(namespace, prefix string, change func([]byte) []byte) (repair func()) {
	s.Helper()
	files := s.newestBlobs(namespace, prefix)
	require.NotEmpty(s, files)
	content, err := os.ReadFile(files[0])
	require.NoError(s, err)
	repair = func() { require.NoError(s, os.WriteFile(files[0], content, 0o600)) }
	s.Cleanup(repair)
	require.NoError(s, os.WriteFile(files[0], change(bytes.Clone(content)), 0o600))
	return repair
}

// hideNewest gives the newest n blobs with a prefix names by which nobody looks for them.
func (s *scenario) hideNewest(namespace, prefix string, n int) (repair func()) {
	s.Helper()
	files := s.newestBlobs(namespace, prefix)
	require.Greater(s, len(files), n)
	away := func(file string) string { return filepath.Join(filepath.Dir(file), "away-"+filepath.Base(file)) }
	repair = sync.OnceFunc(func() {
		for _, file := range files[:n] {
			require.NoError(s, os.Rename(away(file), file))
		}
	})
	s.Cleanup(repair)
	for _, file := range files[:n] {
		require.NoError(s, os.Rename(file, away(file)))
	}
	return repair
}

// recoverWithoutCluster lists, checks, compares and restores the images of the disk of an application.
// want are its contents, oldest first.
func (s *scenario) recoverWithoutCluster(namespace string, want []kit.Sums) {
	s.Helper()
	dir := s.TempDir()
	local := func(args ...string) string {
		s.Helper()
		out, err := s.kit.Local(s.ctx, namespace, dir, append([]string{"image"}, args...)...)
		require.NoError(s, err)
		return out
	}
	volume := namespace + "/" + kit.DiskPVC
	listed := local("list", "--volume", volume)
	s.Log(listed)
	lines := strings.Split(strings.TrimSpace(listed), "\n")[1:]
	require.Len(s, lines, len(want))
	var images []string
	for _, line := range lines { // newest first
		images = append(images, strings.Fields(line)[0])
	}
	local("verify")
	for n, image := range images {
		file := filepath.Join(dir, "disk")
		require.NoError(s, os.WriteFile(file, nil, 0o600))
		require.NoError(s, os.Truncate(file, kit.DiskSize))
		local("restore", "--snapshot", image, "--device", file)
		content, err := os.ReadFile(file)
		require.NoError(s, err)
		require.Equal(s, want[len(want)-1-n].Disk, fmt.Sprintf("%x", sha256.Sum256(content)))
	}
	changed := 0
	for line := range strings.Lines(local("diff", images[1], images[0])) {
		var extent struct{ Length int }
		require.NoError(s, json.Unmarshal([]byte(line), &extent))
		changed += extent.Length
	}
	require.Equal(s, kit.ChangedDiskBytes, changed)
	_, err := s.kit.Local(s.ctx, namespace, dir, "image", "restore", "--snapshot", images[0], "--device", filepath.Join(dir, "missing"))
	require.Error(s, err)
}
