(** Routing as gathers and scatters: what holds for every decoder, every length, every schedule.

    Premises, in words.
    - A block is a function of the rows that it is given, in their order, and of which rows they are, and so of their
      positions. Nothing else reaches it, least of all a row that it does not run. It answers one row per row, and
      whatever it caches. ([block], [keeps_length]; RR-BLOCK-002, RR-BLOCK-003, RR-KV-001.)
    - A decision names rows of the prompt, none twice. It may look at the state of all rows, deferred ones included, and
      at what earlier stages ran: active sets may depend on the data, through scores, pools and spans of any kind.
      ([valid_decision]; RR-POOL-005 asks for more: ascending rows, all text rows among them.)

    What a row's state and a block's cache are is left open. Equality is equality of values: in floating point a block's
    bits may depend on how many rows a matrix product has, which is why RR-EQV-001 compares computed values by tolerance,
    and only moves, indices and deferred rows bit for bit.

    Lists only, no axioms: the last lines ask for the assumptions of every theorem, and check.py reads the answers. *)

From Coq Require Import List Arith Lia.
Import ListNotations.

Section Routing.

Variable row : Type.  (* a row's hidden state *)
Variable kv : Type.   (* what a block leaves in its cache *)
Variable d : row.     (* what a read outside the prompt would give; there is none *)

(** * Gather and scatter *)

(** Rows [I] of [X], in the order of [I]. *)
Definition gather (I : list nat) (X : list row) : list row := map (fun i => nth i X d) I.

(** The entry of [Y] that stands where [i] stands in [I]. *)
Fixpoint entry (i : nat) (I : list nat) (Y : list row) : option row :=
  match I, Y with
  | j :: I', y :: Y' => if i =? j then Some y else entry i I' Y'
  | _, _ => None
  end.

(** [X] with the rows [I] replaced by [Y]; [n] is the index of the head of [X]. *)
Fixpoint scatter_from (n : nat) (I : list nat) (Y X : list row) : list row :=
  match X with
  | [] => []
  | x :: X' => match entry n I Y with Some y => y | None => x end :: scatter_from (S n) I Y X'
  end.

Definition scatter := scatter_from 0.

(** A decision's active rows: rows of the prompt, none twice. *)
Definition valid (I : list nat) (X : list row) : Prop := NoDup I /\ Forall (fun i => i < length X) I.

Lemma length_gather : forall I X, length (gather I X) = length I.
Proof. intros; apply map_length. Qed.

Lemma length_scatter_from : forall X n I Y, length (scatter_from n I Y X) = length X.
Proof. induction X; simpl; intros; auto. Qed.

Lemma length_scatter : forall I Y X, length (scatter I Y X) = length X.
Proof. intros; apply length_scatter_from. Qed.

Lemma nth_scatter_from : forall X n I Y i, i < length X ->
  nth i (scatter_from n I Y X) d = match entry (n + i) I Y with Some y => y | None => nth i X d end.
Proof.
  induction X as [|x X IH]; simpl; intros n I Y i H; [lia|].
  destruct i; simpl.
  - rewrite Nat.add_0_r; reflexivity.
  - rewrite IH by lia. rewrite Nat.add_succ_comm; reflexivity.
Qed.

Lemma nth_scatter : forall I Y X i, i < length X ->
  nth i (scatter I Y X) d = match entry i I Y with Some y => y | None => nth i X d end.
Proof. intros; apply (nth_scatter_from X 0); assumption. Qed.

Lemma entry_out : forall I Y i, ~ In i I -> entry i I Y = None.
Proof.
  induction I as [|j I IH]; destruct Y; simpl; intros i H; auto.
  destruct (Nat.eqb_spec i j); [subst; tauto|]. apply IH; tauto.
Qed.

Lemma entry_in : forall I Y i, length Y = length I -> In i I -> exists y, entry i I Y = Some y.
Proof.
  induction I as [|j I IH]; destruct Y; simpl; intros i L H; try discriminate; [tauto|].
  destruct (Nat.eqb_spec i j); [eauto|]. apply IH; [lia|]. destruct H; [congruence|assumption].
Qed.

Lemma entry_gather : forall I X i y, entry i I (gather I X) = Some y -> y = nth i X d.
Proof.
  induction I as [|j I IH]; simpl; intros X i y H; [discriminate|].
  destruct (Nat.eqb_spec i j); [congruence|]. apply IH; assumption.
Qed.

Lemma row_ext : forall X Y : list row,
  length X = length Y -> (forall i, i < length X -> nth i X d = nth i Y d) -> X = Y.
Proof. intros; apply nth_ext with (d := d) (d' := d); assumption. Qed.

(** A row that is not written keeps its state. RR-BLOCK-001 *)
Theorem scatter_elsewhere : forall I Y X i, ~ In i I -> nth i (scatter I Y X) d = nth i X d.
Proof.
  intros I Y X i H. destruct (Nat.lt_ge_cases i (length X)).
  - rewrite nth_scatter, entry_out by assumption; reflexivity.
  - rewrite !nth_overflow; rewrite ?length_scatter; auto.
Qed.

(** Writing back what was read changes nothing. RR-EQV-001 *)
Theorem scatter_gather : forall I X, scatter I (gather I X) X = X.
Proof.
  intros. apply row_ext; rewrite length_scatter; [reflexivity|].
  intros i H. rewrite nth_scatter by assumption.
  destruct (entry i I (gather I X)) eqn:E; [apply entry_gather in E; assumption|reflexivity].
Qed.

(** Of two writes to the same rows the second stands. RR-EQV-001 *)
Theorem scatter_scatter : forall I Y Z X, length Y = length I -> length Z = length I ->
  scatter I Z (scatter I Y X) = scatter I Z X.
Proof.
  intros. apply row_ext; rewrite !length_scatter; [reflexivity|].
  intros i L. rewrite !nth_scatter by (rewrite ?length_scatter; assumption).
  destruct (in_dec Nat.eq_dec i I) as [H'|H'].
  - destruct (entry_in I Z i) as [z E]; [assumption..|]. rewrite E; reflexivity.
  - rewrite !entry_out by assumption; reflexivity.
Qed.

(** What was written is read back. RR-EQV-001 *)
Theorem gather_scatter : forall I Y X, valid I X -> length Y = length I -> gather I (scatter I Y X) = Y.
Proof.
  intros I Y X [U B] L.
  assert (G : forall J Z, NoDup J -> length Z = length J ->
    map (fun i => match entry i J Z with Some z => z | None => nth i X d end) J = Z).
  { clear. induction J as [|j J IH]; destruct Z as [|z Z]; simpl; intros U L; try discriminate; [reflexivity|].
    inversion U as [|? ? F U']; subst. rewrite Nat.eqb_refl. f_equal.
    transitivity (map (fun i => match entry i J Z with Some z => z | None => nth i X d end) J); [|apply IH; auto].
    apply map_ext_in. intros i H. destruct (Nat.eqb_spec i j); [subst; contradiction|reflexivity]. }
  transitivity (map (fun i => match entry i I Y with Some y => y | None => nth i X d end) I); [|apply G; auto].
  apply map_ext_in. intros i H. apply nth_scatter. rewrite Forall_forall in B; auto.
Qed.

(** * Blocks and stages *)

(** A block: which rows it runs and their states, in order, to their new states and its cache. *)
Definition block := list nat -> list row -> list row * kv.

Definition keeps_length (B : block) : Prop := forall I Y, length Y = length I -> length (fst (B I Y)) = length I.

(** One routed block on the state of all rows: gather, block, scatter. *)
Definition routed (I : list nat) (B : block) (X : list row) : list row * kv :=
  let (Y, c) := B I (gather I X) in (scatter I Y X, c).

(** A stage block by block: every block gathers and scatters. *)
Fixpoint per_block (I : list nat) (Bs : list block) (X : list row) : list row * list kv :=
  match Bs with
  | [] => (X, [])
  | B :: Bs' => let (X', c) := routed I B X in let (Z, cs) := per_block I Bs' X' in (Z, c :: cs)
  end.

(** Blocks one after the other on rows that are already gathered. *)
Fixpoint compact (I : list nat) (Bs : list block) (Y : list row) : list row * list kv :=
  match Bs with
  | [] => (Y, [])
  | B :: Bs' => let (Y', c) := B I Y in let (Z, cs) := compact I Bs' Y' in (Z, c :: cs)
  end.

(** A stage at once: one gather, all blocks, one scatter. *)
Definition stage_wise (I : list nat) (Bs : list block) (X : list row) : list row * list kv :=
  let (Y, cs) := compact I Bs (gather I X) in (scatter I Y X, cs).

Lemma length_compact : forall Bs I Y, Forall keeps_length Bs -> length Y = length I ->
  length (fst (compact I Bs Y)) = length I.
Proof.
  induction Bs as [|B Bs IH]; simpl; intros I Y K L; [assumption|].
  inversion K as [|? ? KB K']; subst. specialize (KB I Y L).
  destruct (B I Y) as [Y' c]; simpl in *. specialize (IH I Y' K' KB).
  destruct (compact I Bs Y'); assumption.
Qed.

(** E1 within a stage of any number of blocks: the same states, the same caches. RR-EQV-001 *)
Theorem stage_per_block_is_stage_wise : forall Bs I X, Forall keeps_length Bs -> valid I X ->
  per_block I Bs X = stage_wise I Bs X.
Proof.
  unfold stage_wise. induction Bs as [|B Bs IH]; simpl; intros I X K V.
  - rewrite scatter_gather; reflexivity.
  - inversion K as [|? ? KB K']; subst. unfold routed.
    specialize (KB I (gather I X) (length_gather I X)).
    destruct (B I (gather I X)) as [Y c]; simpl in *.
    rewrite IH, gather_scatter; [|assumption..|].
    + pose proof (length_compact Bs I Y K' KB) as L.
      destruct (compact I Bs Y) as [Z cs]; simpl in *.
      rewrite scatter_scatter by assumption; reflexivity.
    + destruct V as [U F]; split; [assumption|]. rewrite length_scatter; assumption.
Qed.

Lemma length_stage_wise : forall Bs I X, length (fst (stage_wise I Bs X)) = length X.
Proof. intros. unfold stage_wise. destruct (compact I Bs (gather I X)); apply length_scatter. Qed.

(** * Whole runs: any number of stages *)

(** From the active rows of the earlier stages (latest first) and the state of all rows to the active rows. The dense
    stage before the first decision is one that always answers all rows. *)
Definition decision := list (list nat) -> list row -> list nat.

Definition valid_decision (D : decision) (S : nat) : Prop := forall past X, length X = S -> valid (D past X) X.

Definition stage : Type := decision * list block.

Definition well_formed (S : nat) (s : stage) : Prop := valid_decision (fst s) S /\ Forall keeps_length (snd s).

(** A run leaves the state of all rows and, per stage, its active rows and the caches of its blocks. *)
Fixpoint run (how : list nat -> list block -> list row -> list row * list kv)
  (stages : list stage) (past : list (list nat)) (X : list row) : list row * list (list nat * list kv) :=
  match stages with
  | [] => (X, [])
  | (D, Bs) :: rest =>
      let I := D past X in
      let (X', cs) := how I Bs X in
      let (Z, log) := run how rest (I :: past) X' in (Z, (I, cs) :: log)
  end.

(** E1 for any length, any number of blocks in a stage, any number of stages: routing block by block and stage by stage
    take the same decisions, leave the same states and fill the same caches. RR-EQV-001 *)
Theorem per_block_is_stage_wise : forall stages past X, Forall (well_formed (length X)) stages ->
  run per_block stages past X = run stage_wise stages past X.
Proof.
  induction stages as [|[D Bs] rest IH]; simpl; intros past X W; [reflexivity|].
  inversion W as [|? ? [V K] W']; subst; simpl in *.
  rewrite stage_per_block_is_stage_wise by auto.
  pose proof (length_stage_wise Bs (D past X) X) as L.
  destruct (stage_wise (D past X) Bs X) as [X' cs]; simpl in L.
  rewrite IH by (rewrite L; assumption). reflexivity.
Qed.

(** Under [reroute] the output covers all rows. RR-BLOCK-008 *)
Theorem run_keeps_all_rows : forall stages past X, length (fst (run stage_wise stages past X)) = length X.
Proof.
  induction stages as [|[D Bs] rest IH]; simpl; intros past X; [reflexivity|].
  pose proof (length_stage_wise Bs (D past X) X) as L.
  destruct (stage_wise (D past X) Bs X) as [X' cs]; simpl in L.
  specialize (IH (D past X :: past) X'). destruct (run stage_wise rest (D past X :: past) X'); simpl in *. lia.
Qed.

(** A row that is deferred in a stage leaves the stage as it came, whatever the blocks do. RR-BLOCK-001 *)
Theorem deferred_in_a_stage_is_unchanged : forall Bs I X i, ~ In i I ->
  nth i (fst (per_block I Bs X)) d = nth i X d.
Proof.
  induction Bs as [|B Bs IH]; simpl; intros I X i H; [reflexivity|].
  unfold routed. destruct (B I (gather I X)) as [Y c].
  specialize (IH I (scatter I Y X) i H). destruct (per_block I Bs (scatter I Y X)); simpl in *.
  rewrite IH. apply scatter_elsewhere; assumption.
Qed.

(** A row that no stage ran is what it was, whatever was decided. RR-BLOCK-001 *)
Theorem never_active_is_unchanged : forall stages past X i,
  (forall I cs, In (I, cs) (snd (run per_block stages past X)) -> ~ In i I) ->
  nth i (fst (run per_block stages past X)) d = nth i X d.
Proof.
  induction stages as [|[D Bs] rest IH]; simpl; intros past X i H; [reflexivity|].
  pose proof (deferred_in_a_stage_is_unchanged Bs (D past X) X i) as Q.
  destruct (per_block (D past X) Bs X) as [X' cs]; simpl in *.
  specialize (IH (D past X :: past) X' i).
  destruct (run per_block rest (D past X :: past) X') as [Z log]; simpl in *.
  rewrite IH; [apply Q|]; eauto.
Qed.

(** * keep = 1, and one decision *)

Lemma gather_all : forall X, gather (seq 0 (length X)) X = X.
Proof.
  intros. apply row_ext; rewrite length_gather, seq_length; [reflexivity|]. intros i H. unfold gather.
  rewrite nth_indep with (d' := nth 0 X d) by (rewrite map_length, seq_length; assumption).
  rewrite (map_nth (fun j => nth j X d)), seq_nth by assumption. reflexivity.
Qed.

(** E2 within a stage: with all rows active, routing is running the blocks. RR-EQV-002 *)
Theorem all_active_is_unrouted : forall Bs X, Forall keeps_length Bs ->
  per_block (seq 0 (length X)) Bs X = compact (seq 0 (length X)) Bs X.
Proof.
  intros Bs X K. set (I := seq 0 (length X)).
  assert (LI : length I = length X) by apply seq_length.
  assert (V : valid I X).
  { split; [apply seq_NoDup|]. apply Forall_forall. intros i H. apply in_seq in H; lia. }
  rewrite stage_per_block_is_stage_wise by assumption.
  unfold stage_wise. replace (gather I X) with X by (symmetry; apply gather_all).
  pose proof (length_compact Bs I X K (eq_sym LI)) as L.
  destruct (compact I Bs X) as [Y cs]; simpl in L. f_equal.
  rewrite <- (gather_all (scatter I Y X)), length_scatter. apply gather_scatter; assumption.
Qed.

Lemma compact_app : forall Bs Cs I Y,
  compact I (Bs ++ Cs) Y = let (Z, cs) := compact I Bs Y in let (W, es) := compact I Cs Z in (W, cs ++ es).
Proof.
  induction Bs as [|B Bs IH]; simpl; intros Cs I Y; [destruct (compact I Cs Y); reflexivity|].
  destruct (B I Y) as [Y' c]. rewrite IH. destruct (compact I Bs Y') as [Z cs].
  destruct (compact I Cs Z); reflexivity.
Qed.

Definition keeps_all (S : nat) (s : stage) : Prop := forall past X, length X = S -> fst s past X = seq 0 S.

(** E2: when every decision keeps every row, a run is all blocks, one after the other, on all rows.
    RR-EQV-002, RR-CFG-009 *)
Theorem all_kept_is_unrouted : forall stages past X,
  Forall (fun s => keeps_all (length X) s /\ Forall keeps_length (snd s)) stages ->
  let (Z, log) := run per_block stages past X in
  (Z, concat (map snd log)) = compact (seq 0 (length X)) (concat (map snd stages)) X.
Proof.
  induction stages as [|[D Bs] rest IH]; simpl; intros past X W; [reflexivity|].
  inversion W as [|? ? [A K] W']; subst. unfold keeps_all in A; simpl in *.
  rewrite A by reflexivity. rewrite all_active_is_unrouted, compact_app by assumption.
  pose proof (length_compact Bs (seq 0 (length X)) X K (eq_sym (seq_length _ _))) as L.
  destruct (compact (seq 0 (length X)) Bs X) as [X' cs]; simpl in L. rewrite seq_length in L.
  specialize (IH (seq 0 (length X) :: past) X'). rewrite L in IH. specialize (IH W').
  destruct (run per_block rest (seq 0 (length X) :: past) X') as [Z log]; simpl.
  rewrite <- IH. reflexivity.
Qed.

(** E3: [X] is the state at the one decision, the same for both. [delete] goes on with the gathered rows alone, [reroute]
    keeps all rows: on the active rows, and in every cache, they agree. RR-EQV-003 *)
Theorem one_decision_reroute_is_delete_on_active_rows : forall (D : decision) Bs past X,
  valid_decision D (length X) -> Forall keeps_length Bs ->
  let I := D past X in
  let (kept, caches) := compact I Bs (gather I X) in
  let (all, log) := run per_block [(D, Bs)] past X in
  gather I all = kept /\ log = [(I, caches)].
Proof.
  intros D Bs past X V K I. simpl. fold I.
  specialize (V past X eq_refl). fold I in V.
  rewrite stage_per_block_is_stage_wise by assumption. unfold stage_wise.
  pose proof (length_compact Bs I (gather I X) K (length_gather I X)) as L.
  destruct (compact I Bs (gather I X)) as [Y cs]; simpl in *.
  split; [apply gather_scatter; assumption|reflexivity].
Qed.

End Routing.

(** * The premises can be met, and are needed *)

(** Two blocks over numbers, of all rows that they run and of their names and order, that cache what they see. *)
Definition sums : block nat (list nat) := fun I Y => (map (fun y => y + list_sum Y) Y, Y).
Definition named : block nat (list nat) := fun I Y => (map (fun p => 10 * fst p + snd p) (combine I Y), I).

(** A decision that depends on the state of all rows, deferred ones included. *)
Definition even_rows : decision nat := fun _ X => filter (fun i => Nat.even (nth i X 0)) (seq 0 (length X)).

Example the_premises_can_be_met : forall S, well_formed nat (list nat) S (even_rows, [sums; named]).
Proof.
  split; simpl.
  - intros past X L. unfold even_rows. split; [apply NoDup_filter, seq_NoDup|].
    apply Forall_forall. intros i H. apply filter_In in H. rewrite in_seq in H; lia.
  - repeat constructor; intros I Y L; simpl; rewrite map_length, ?combine_length; lia.
Qed.

(** Row 2 is deferred by the first decision and re-enters at the second, which the data decide. *)
Example a_row_re_enters :
  let stages := [(fun _ _ => [0; 1], [sums; named]); (even_rows, [sums])] in
  run nat (list nat) (per_block nat (list nat) 0) stages [] [1; 2; 4]
  = ([12; 15; 12], [([0; 1], [[1; 2]; [0; 1]]); ([0; 2], [[4; 4]])]).
Proof. reflexivity. Qed.

(** A row named twice is two rows for a stage and one for the prompt: distinct rows are needed. *)
Example without_distinct_rows :
  let order : block nat (list nat) := fun I Y => (map (fun p => fst p + snd p) (combine (seq 0 (length Y)) Y), Y) in
  per_block nat (list nat) 0 [0; 0] [order; order] [1; 2] <> stage_wise nat (list nat) 0 [0; 0] [order; order] [1; 2].
Proof. discriminate. Qed.

(** A block that answers fewer rows than it is given: one row per row is needed. *)
Example without_keeping_the_length :
  let first : block nat (list nat) := fun I Y => (firstn 1 Y, Y) in
  per_block nat (list nat) 0 [0; 1] [first; first] [1; 2] <> stage_wise nat (list nat) 0 [0; 1] [first; first] [1; 2].
Proof. discriminate. Qed.

(** * What all of this rests on *)

Print Assumptions scatter_elsewhere.
Print Assumptions scatter_gather.
Print Assumptions scatter_scatter.
Print Assumptions gather_scatter.
Print Assumptions stage_per_block_is_stage_wise.
Print Assumptions per_block_is_stage_wise.
Print Assumptions run_keeps_all_rows.
Print Assumptions deferred_in_a_stage_is_unchanged.
Print Assumptions never_active_is_unchanged.
Print Assumptions all_active_is_unrouted.
Print Assumptions all_kept_is_unrouted.
Print Assumptions one_decision_reroute_is_delete_on_active_rows.
Print Assumptions the_premises_can_be_met.
Print Assumptions a_row_re_enters.
Print Assumptions without_distinct_rows.
Print Assumptions without_keeping_the_length.
