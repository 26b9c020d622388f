package kubectl

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
)

// verifier has a cluster in which Jobs run at once. Their logs are those that it is told.
func verifier(t *testing.T, log string, phase corev1.PodPhase, uploads ...*velerov2alpha1.DataUpload) (*call, *[]batchv1.Job) {
	t.Helper()
	in := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "velero", Name: name} }
	manager := &appsv1.Deployment{ObjectMeta: in("blockmover")}
	manager.Spec.Template.Spec.Containers = []corev1.Container{{Image: "mover:1"}}
	repository := &velerov1.BackupRepository{ObjectMeta: in("shop-default-kopia")}
	repository.Spec = velerov1.BackupRepositorySpec{VolumeNamespace: "shop", BackupStorageLocation: "default", RepositoryType: velerov1.BackupRepositoryTypeKopia}
	objects := []client.Object{
		manager, repository, &velerov1.BackupStorageLocation{ObjectMeta: in("default")}, &corev1.ConfigMap{ObjectMeta: in("blockmover-config")},
		&velerov1.Backup{ObjectMeta: in("daily-1")},
	}
	for _, u := range uploads {
		objects = append(objects, u)
	}
	c := newCall(t, objects...)
	jobs := &[]batchv1.Job{}
	fake, ok := c.Client.(client.WithWatch)
	require.True(t, ok)
	c.Client = interceptor.NewClient(fake, interceptor.Funcs{
		Create: func(ctx context.Context, under client.WithWatch, o client.Object, options ...client.CreateOption) error {
			if err := under.Create(ctx, o, options...); err != nil {
				return err
			}
			job, ok := o.(*batchv1.Job)
			if !ok {
				return nil
			}
			*jobs = append(*jobs, *job)
			return under.Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: job.Namespace, Name: job.Name + "-pod", Labels: map[string]string{batchv1.JobNameLabel: job.Name}},
				Status:     corev1.PodStatus{Phase: phase},
			})
		},
	})
	c.podLogs = func(context.Context, string, string) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(log)), nil
	}
	return c, jobs
}

func image(name, backup, pvc, snapshot string, age time.Duration) *velerov2alpha1.DataUpload {
	u := upload(name, backup, velerov2alpha1.DataUploadPhaseCompleted, age)
	u.Spec.SourcePVC, u.Status.SnapshotID = pvc, snapshot
	return u
}

func (c *call) verify(t *testing.T, args ...string) error {
	t.Helper()
	cmd := newVerifyCommand(c.session)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	return cmd.ExecuteContext(t.Context())
}

func (c *call) verified(t *testing.T, name string) *operation.Verified {
	t.Helper()
	du := &velerov2alpha1.DataUpload{}
	require.NoError(t, c.Client.Get(t.Context(), client.ObjectKey{Namespace: "velero", Name: name}, du))
	v, err := operation.Of(du).VerifiedOf()
	require.NoError(t, err)
	return v
}

func TestVerifySound(t *testing.T) {
	c, jobs := verifier(t, "a message for people\n"+`{"snapshotID":"s2","ok":true,"size":1048576,"damagedBytes":0}`+"\n", corev1.PodSucceeded,
		image("u1", "daily-0", "data", "s1", 2*time.Hour), image("u2", "daily-1", "data", "s2", time.Hour), image("u3", "daily-1", "log", "s3", time.Hour))
	require.NoError(t, c.verify(t, "shop/data"))
	require.Regexp(t, `shop/data +daily-1 +ok +1.0MiB`, c.out.String())
	require.True(t, c.verified(t, "u2").OK)
	require.Nil(t, c.verified(t, "u1"), "only the newest")
	require.Len(t, *jobs, 1)
	spec := (*jobs)[0].Spec.Template.Spec
	require.Equal(t, []string{"image", "verify", "--json", "--repo", "velero://velero/shop-default-kopia", "--snapshot", "s2"}, spec.Containers[0].Args)
	require.Equal(t, "mover:1", spec.Containers[0].Image)
	require.Empty(t, spec.Containers[0].VolumeDevices)
	for _, v := range spec.Volumes {
		require.Nil(t, v.PersistentVolumeClaim)
	}
	left := &batchv1.JobList{}
	require.NoError(t, c.Client.List(t.Context(), left))
	require.Empty(t, left.Items)
}

func TestVerifyDamaged(t *testing.T) {
	log := `{"snapshotID":"s2","ok":false,"size":1048576,"damagedBytes":4096,"damage":[{"offset":65536,"length":4096,"error":"blob not found"}]}
{"snapshotID":"s3","ok":true,"size":1048576}
{"snapshotID":"unknown","ok":true}
`
	c, _ := verifier(t, log, corev1.PodFailed, image("u2", "daily-1", "data", "s2", time.Hour), image("u3", "daily-1", "log", "s3", time.Hour))
	require.ErrorContains(t, c.verify(t, "daily-1"), "1 of 2 images are damaged")
	require.Regexp(t, `shop/data +daily-1 +damaged +1.0MiB +4.0KiB cannot be read, first at offset 65536: blob not found`, c.out.String())
	require.False(t, c.verified(t, "u2").OK)
	require.True(t, c.verified(t, "u3").OK)
	events := &corev1.EventList{}
	require.NoError(t, c.Client.List(t.Context(), events))
	require.Len(t, events.Items, 1)
	require.Contains(t, events.Items[0].Message, "the image of volume shop/data cannot be restored completely")
}

// What the job does not say, or what cannot be kept, is no success.
func TestVerifyIncomplete(t *testing.T) {
	const ok = `{"snapshotID":"s2","ok":true,"size":1048576}` + "\n"
	long := `{"snapshotID":"s3","ok":true,"error":"` + strings.Repeat("x", 2<<20) + `"}` + "\n"
	images := []*velerov2alpha1.DataUpload{image("u2", "daily-1", "data", "s2", time.Hour), image("u3", "daily-1", "log", "s3", time.Hour)}
	for name, log := range map[string]string{"nothing of one": ok, "a line that is too long": long + ok} {
		c, _ := verifier(t, log, corev1.PodSucceeded, images...)
		require.ErrorContains(t, c.verify(t, "daily-1"), "the job said nothing of 1 of 2 images of BackupRepository shop-default-kopia: verify again", name)
		require.True(t, c.verified(t, "u2").OK)
	}

	c, _ := verifier(t, ok, corev1.PodSucceeded, images[0])
	under, ok2 := c.Client.(client.WithWatch)
	require.True(t, ok2)
	c.Client = interceptor.NewClient(under, interceptor.Funcs{
		Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
			return errors.New("no right to patch")
		},
	})
	require.ErrorContains(t, c.verify(t, "daily-1"), "no right to patch")
}

// Where nothing can be read, every image is hit, and each is named with the cause.
func TestVerifyUnusable(t *testing.T) {
	const why = "open backup repository velero/shop-default-kopia: the password is not this repository's, or the blob kopia.repository is damaged"
	log := `{"snapshotID":"s2","ok":false,"size":0,"damagedBytes":0,"error":"` + why + `"}
{"snapshotID":"s3","ok":false,"size":0,"damagedBytes":0,"error":"` + why + `"}
blockmover: ` + why + "\n"
	c, _ := verifier(t, log, corev1.PodFailed, image("u2", "daily-1", "data", "s2", time.Hour), image("u3", "daily-1", "log", "s3", time.Hour))
	err := c.verify(t, "daily-1")
	require.ErrorContains(t, err, "2 of 2 images are damaged")
	require.ErrorContains(t, err, "put back what is missing")
	for pvc, upload := range map[string]string{"data": "u2", "log": "u3"} {
		require.Regexp(t, "shop/"+pvc+` +daily-1 +damaged +.* `+why, c.out.String())
		require.Equal(t, why, c.verified(t, upload).Detail)
		require.False(t, c.verified(t, upload).OK)
	}
	events := &corev1.EventList{}
	require.NoError(t, c.Client.List(t.Context(), events))
	var messages []string
	for _, e := range events.Items {
		messages = append(messages, e.Message)
	}
	require.ElementsMatch(t, []string{
		"the image of volume shop/data cannot be restored completely: " + why,
		"the image of volume shop/log cannot be restored completely: " + why,
	}, messages)
}

// A Job that fails before it has read everything is an error with its last words, and no verdict.
func TestVerifyFails(t *testing.T) {
	c, _ := verifier(t, "blockmover: open repository: no such host\n", corev1.PodFailed, image("u2", "daily-1", "data", "s2", time.Hour))
	require.ErrorContains(t, c.verify(t, "daily-1"), "open repository: no such host")
	require.Nil(t, c.verified(t, "u2"))
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "name a backup or NAMESPACE/PVC, or give --all"},
		{[]string{"daily-1", "--all"}, "name a backup or NAMESPACE/PVC, or give --all"},
		{[]string{"daily-9"}, "has no complete image of daily-9: `kubectl blockmover status --all` lists"},
		{[]string{"--all", "--max-bytes", "many"}, "want a quantity"},
		{[]string{"--all", "--max-bytes", "-1"}, "want a quantity"},
	} {
		require.ErrorContains(t, c.verify(t, tc.args...), tc.want)
	}
}

// Those that were verified longest ago come first, and a budget takes the first ones.
func TestVerifyChoice(t *testing.T) {
	older := image("u1", "b", "a", "s1", time.Hour)
	older.Annotations = map[string]string{identity.AnnotationVerified: operation.Verified{At: noon.Add(-48 * time.Hour), OK: true}.String()}
	newer := image("u2", "b", "b", "s2", time.Hour)
	newer.Annotations = map[string]string{identity.AnnotationVerified: operation.Verified{At: noon.Add(-24 * time.Hour)}.String()}
	never := image("u3", "b", "c", "s3", time.Hour)
	failed := image("u4", "b", "d", "s4", time.Hour)
	failed.Status.Phase = velerov2alpha1.DataUploadPhaseFailed
	c, _ := verifier(t, "", corev1.PodSucceeded, newer, older, never, failed)
	choose := func(budget int64) (names []string) {
		o := &verifyOptions{session: c.session, all: true, maxBytes: budget}
		chosen, err := o.choose(t.Context())
		require.NoError(t, err)
		for _, u := range chosen {
			names = append(names, u.Name)
		}
		return names
	}
	require.Equal(t, []string{"u3", "u1", "u2"}, choose(0))
	require.Equal(t, []string{"u3", "u1"}, choose(2000<<20))
	require.Equal(t, []string{"u3"}, choose(1))
}

func TestChainShowsVerification(t *testing.T) {
	text := func(v string) string {
		u := image("u1", "b", "data", "s1", time.Hour)
		u.Annotations = map[string]string{identity.AnnotationVerified: v}
		i := chainOf([]*operation.View{operation.Of(u)}, "shop/data", false)[0]
		_, err := json.Marshal(i)
		require.NoError(t, err)
		return i.verified()
	}
	require.Equal(t, "2026-11-29", text(operation.Verified{At: noon.Time, OK: true}.String()))
	require.Equal(t, "DAMAGED", text(operation.Verified{At: noon.Time}.String()))
	require.Equal(t, "never", text("{"))
}
