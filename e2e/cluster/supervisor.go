package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/e2e/images"
)

// Phases of a cluster, in status.json.
const (
	PhaseStarting = "starting"
	PhaseReady    = "ready"
	PhaseFailed   = "failed"
)

// Status is what the supervisor says about the cluster.
type Status struct {
	Phase      string            `json:"phase"`
	Message    string            `json:"message,omitempty"`
	Components []ComponentStatus `json:"components"`
}

// ComponentStatus is one process; Exited is empty while it runs.
type ComponentStatus struct {
	Name     string `json:"name"`
	PID      int    `json:"pid"` // in the cluster's PID namespace
	Exited   string `json:"exited,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
}

// Err says what is wrong with a cluster, or returns nil.
func (s Status) Err() error {
	var errs []error
	for _, comp := range s.Components {
		if comp.Exited != "" {
			errs = append(errs, fmt.Errorf("%s is dead: %s", comp.Name, comp.Exited))
		}
	}
	if s.Phase != PhaseReady {
		errs = append(errs, fmt.Errorf("cluster is %s: %s", s.Phase, s.Message))
	}
	return errors.Join(errs...)
}

// event is a line from the supervisor to `up`: a step, or at the end Done or an error.
type event struct {
	Step  string `json:"step,omitempty"`
	Error string `json:"error,omitempty"`
	Done  bool   `json:"done,omitempty"`
}

// eventsFD is the pipe to `up` in the init and supervisor processes.
const eventsFD = 3

// Init is PID 1 of the cluster. It starts the supervisor, reaps orphans, and ends with the
// supervisor. The kernel then kills the rest.
func (c *Cluster) Init() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	cmd := exec.Command("/proc/self/exe", append(c.superviseArgs(), "--supervisor")...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(eventsFD, "events")}
	if err := cmd.Start(); err != nil {
		return err
	}
	// `up` must see the end of the pipe when the supervisor dies.
	if err := cmd.ExtraFiles[0].Close(); err != nil {
		return err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if pid == cmd.Process.Pid {
			return nil
		}
	}
}

// supervisor starts components and watches them.
type supervisor struct {
	c      *Cluster
	events *os.File
	fail   context.CancelCauseFunc // a component died while starting

	mu     sync.Mutex
	status Status
}

// Supervise is the process below PID 1. It brings the cluster up, and watches it until it is
// told to stop.
func (c *Cluster) Supervise() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	starting, fail := context.WithCancelCause(ctx)
	s := &supervisor{c: c, events: os.NewFile(eventsFD, "events"), fail: fail, status: Status{Phase: PhaseStarting}}
	unix.CloseOnExec(eventsFD)
	err := s.start(starting)
	if err != nil {
		s.setPhase(PhaseFailed, err.Error())
		s.send(event{Error: err.Error()})
		return err
	}
	s.setPhase(PhaseReady, "")
	s.send(event{Done: true})
	_ = s.events.Close() // `up` may be gone
	<-ctx.Done()
	return nil
}

func (s *supervisor) send(e event) {
	data, err := json.Marshal(e)
	if err == nil {
		_, _ = s.events.Write(append(data, '\n')) // `up` may be gone, which is no reason to stop
	}
}

func (s *supervisor) step(format string, args ...any) {
	s.send(event{Step: fmt.Sprintf(format, args...)})
}

func (s *supervisor) setPhase(phase, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Phase, s.status.Message = phase, message
	s.writeStatus()
}

func (s *supervisor) writeStatus() {
	data, err := json.MarshalIndent(s.status, "", "  ")
	if err != nil {
		return
	}
	file := s.c.path("status.json")
	if os.WriteFile(file+".new", data, 0o644) == nil {
		_ = os.Rename(file+".new", file)
	}
}

// launch starts components. Each has a log file of its own.
func (s *supervisor) launch(components ...component) error {
	for _, comp := range components {
		cmd, err := s.c.run(comp)
		if err != nil {
			return err
		}
		s.mu.Lock()
		index := len(s.status.Components)
		s.status.Components = append(s.status.Components, ComponentStatus{Name: comp.name, PID: cmd.Process.Pid})
		s.writeStatus()
		s.mu.Unlock()
		go s.watch(comp, cmd, index)
	}
	return nil
}

// run starts the process of a component.
func (c *Cluster) run(comp component) (*exec.Cmd, error) {
	log, err := os.OpenFile(c.log(comp.name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(comp.argv[0], comp.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), "TMPDIR="+c.path("tmp")), comp.env...)
	// In a process group of its own, it gets no Ctrl-C of the terminal.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		return nil, fmt.Errorf("start %s: %w", comp.name, err)
	}
	return cmd, nil
}

// restartDelay is the pause before a component that exited is started again.
const restartDelay = time.Second

// watch waits for the end of a component. If one ends while the cluster starts, the start
// fails. Later, it is started again, as the kubelet or systemd would: some sidecars exit when
// their driver does. If there is a file of its name in the directory "hold", watch waits until
// the file is gone.
func (s *supervisor) watch(comp component, cmd *exec.Cmd, index int) {
	for {
		_ = cmd.Wait()
		how := cmd.ProcessState.String()
		fmt.Fprintf(os.Stderr, "%s: %s exited: %s; see %s\n", time.Now().Format(time.RFC3339), comp.name, how, s.c.log(comp.name))
		s.mu.Lock()
		ready := s.status.Phase == PhaseReady
		s.status.Components[index].Exited = how + " at " + time.Now().Format(time.RFC3339) + "; see " + s.c.log(comp.name)
		s.writeStatus()
		s.mu.Unlock()
		if !ready {
			s.fail(fmt.Errorf("%s exited: %s; %s ends with:\n%s", comp.name, how, s.c.log(comp.name), logEnd(s.c.log(comp.name))))
			return
		}
		var err error
		if cmd, err = s.restart(comp); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", time.Now().Format(time.RFC3339), err)
			return
		}
		s.mu.Lock()
		status := &s.status.Components[index]
		status.PID, status.Exited = cmd.Process.Pid, ""
		status.Restarts++
		s.writeStatus()
		s.mu.Unlock()
	}
}

func (s *supervisor) restart(comp component) (*exec.Cmd, error) {
	time.Sleep(restartDelay)
	for {
		if _, err := os.Stat(s.c.path("hold", comp.name)); err != nil {
			return s.c.run(comp)
		}
		time.Sleep(restartDelay / 4)
	}
}

// driverOptions let the test drivers report a delta whose base snapshot is deleted, as some
// storage does. Scenarios may rewrite the file.
const driverOptions = `{"requireBaseSnapshotForDelta": false}
`

// start brings a cluster with CSI up from empty namespaces.
func (s *supervisor) start(ctx context.Context) error {
	c := s.c
	if err := c.enterSandbox(ctx); err != nil {
		return err
	}
	if err := c.makeDirs(); err != nil {
		return err
	}
	ca, err := c.createPKI()
	if err != nil {
		return fmt.Errorf("create PKI: %w", err)
	}
	if err := c.writeConfigs(); err != nil {
		return err
	}
	a, err := c.newAPI(ca)
	if err != nil {
		return err
	}
	s.step("namespaces, keys and configuration made")

	if err := s.launch(c.etcd(), c.containerd(), c.objectStore(), c.apiserver()); err != nil {
		return err
	}
	for _, d := range Drivers {
		if err := s.launch(c.csiDriver(d)); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := s.controlPlane(ctx, a, ca); err != nil {
			return err
		}
		return s.node(ctx, a)
	})
	group.Go(func() error { return s.containerImages(ctx) })
	return group.Wait()
}

// makeDirs makes the directories and files that the components expect.
func (c *Cluster) makeDirs() error {
	for _, dir := range []string{"logs", "tmp", "hold", "s3/" + S3Bucket, "pod-logs", "containerd", "kubelet/plugins_registry", "volume-plugins"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	for _, d := range Drivers {
		for _, dir := range []string{c.CSIState(d.Name), filepath.Dir(c.csiSocket(d.Name))} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(c.CSIState(d.Name), "options.json"), []byte(driverOptions), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// containerImages loads what every pod needs.
func (s *supervisor) containerImages(ctx context.Context) error {
	c := s.c
	err := waitFor(ctx, "containerd answers", 30*time.Second, c.log("containerd"), func(ctx context.Context) error {
		return run(ctx, c.runtimeFile("usr/bin/ctr"), "--address", c.containerdSocket(), "version")
	})
	if err != nil {
		return err
	}
	archives := []string{c.imageArchive(images.PauseName), c.imageArchive(images.BusyboxName)}
	if err := c.importImages(ctx, archives...); err != nil {
		return err
	}
	s.step("containerd runs, images %s and %s loaded", images.PauseName, images.BusyboxName)
	return nil
}

func (s *supervisor) controlPlane(ctx context.Context, a *api, ca []byte) error {
	c := s.c
	err := waitFor(ctx, "API server is ready", 60*time.Second, c.log("kube-apiserver"), func(ctx context.Context) error {
		_, err := a.do(ctx, http.MethodGet, "/readyz", nil)
		return err
	})
	if err != nil {
		return err
	}
	s.step("API server is ready")
	// They come after the API server has bootstrapped RBAC: before that, they exit or miss
	// their first objects.
	if err := s.launch(c.kubelet(), c.controllerManager(), c.scheduler()); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := c.applyBase(limited, a, ca); err != nil {
		return err
	}
	if err := s.launch(c.snapshotController()); err != nil {
		return err
	}
	for _, d := range Drivers {
		if err := s.launch(c.csiSidecars(d)...); err != nil {
			return err
		}
	}
	s.step("CRDs and classes applied, controllers started")
	return nil
}

func (s *supervisor) node(ctx context.Context, a *api) error {
	c := s.c
	err := waitFor(ctx, "node is Ready", 90*time.Second, c.log("kubelet"), func(ctx context.Context) error {
		return c.nodeReady(ctx, a)
	})
	if err != nil {
		return err
	}
	s.step("node %s is Ready", c.Name)
	err = waitFor(ctx, "default service account", 60*time.Second, c.log("kube-controller-manager"), func(ctx context.Context) error {
		_, err := a.do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil)
		return err
	})
	if err != nil {
		return err
	}
	err = waitFor(ctx, "object storage answers", 30*time.Second, c.log("versitygw"), func(ctx context.Context) error {
		return dial(ctx, "tcp", NodeIP+":7070")
	})
	if err != nil {
		return err
	}
	err = waitFor(ctx, "CSI drivers register", 60*time.Second, filepath.Dir(c.log("x")), func(ctx context.Context) error {
		return c.driversRegistered(ctx, a)
	})
	if err != nil {
		return err
	}
	for _, d := range Drivers {
		err := waitFor(ctx, "snapshot metadata service of "+d.Name, 60*time.Second, c.log("csi-snapshot-metadata-"+d.Name),
			func(ctx context.Context) error { return dial(ctx, "tcp", NodeIP+":"+strconv.Itoa(d.metadataPort)) })
		if err != nil {
			return err
		}
	}
	s.step("CSI drivers registered")
	return nil
}
