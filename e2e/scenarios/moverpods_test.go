package scenarios

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// podWatch collects the mover pods that appear while a scenario runs.
type podWatch struct {
	s    *scenario
	stop context.CancelFunc
	done sync.WaitGroup
	mu   sync.Mutex
	pods map[string]kit.Object
}

// watchMoverPods collects mover pods until check is called.
func (s *scenario) watchMoverPods() *podWatch {
	ctx, stop := context.WithCancel(s.ctx)
	w := &podWatch{s: s, stop: stop, pods: map[string]kit.Object{}}
	s.Cleanup(stop)
	w.done.Go(func() {
		poll(ctx, func() {
			pods, err := s.kit.List(ctx, "-n", s.kit.VeleroNamespace, "pods", "-l", "blockmover.io/operation")
			if err == nil {
				w.mu.Lock()
				for _, p := range pods {
					w.pods[p.Metadata.Name] = p
				}
				w.mu.Unlock()
			}
		})
	})
	return w
}

// poll looks several times a second until the context ends.
func poll(ctx context.Context, look func()) {
	for ctx.Err() == nil {
		look()
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// objectWatch collects objects that appear while a scenario runs.
type objectWatch struct {
	stop  context.CancelFunc
	done  sync.WaitGroup
	found map[string]kit.Object
}

// end returns what was seen, by name.
func (w *objectWatch) end() map[string]kit.Object {
	w.stop()
	w.done.Wait()
	return w.found
}

// check ends the collection, and checks that the pods had no rights but to move their one
// device.
func (w *podWatch) check() {
	w.stop()
	w.done.Wait()
	require.GreaterOrEqual(w.s, len(w.pods), 4, "mover pods seen")
	for name, pod := range w.pods {
		spec := pod.Spec
		require.Equal(w.s, "true", pod.Metadata.Labels["velero.io/exclude-from-backup"], name)
		require.False(w.s, spec.HostNetwork || spec.HostPID || spec.HostIPC, "%s: host namespaces", name)
		require.Equal(w.s, "blockmover-worker", spec.ServiceAccount, name)
		require.Equal(w.s, "RuntimeDefault", spec.SecurityContext.SeccompProfile.Type, name)
		for _, v := range spec.Volumes {
			require.Nil(w.s, v.HostPath, "%s: hostPath %s", name, v.Name)
		}
		for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
			sc := c.SecurityContext
			require.NotNil(w.s, sc, name)
			require.True(w.s, sc.Privileged == nil || !*sc.Privileged, "%s: privileged", name)
			require.False(w.s, *sc.AllowPrivilegeEscalation, name)
			require.True(w.s, *sc.ReadOnlyRootFilesystem, name)
			require.Equal(w.s, []string{"ALL"}, sc.Capabilities.Drop, name)
			require.Empty(w.s, sc.Capabilities.Add, name)
		}
	}
}
